-- title: Sparsity, robust against standard
-- finding: Robust models have far fewer sparse filters than standard ones: 9.5 % against 38.8 %.
-- paper: pca_dict.cpkl, over the 71 and 43 models (sparsity.ipynb cells 13-14 print 0.0945 and 0.3948)
-- expect: robust below standard
-- note: Over the models of pairs, each once. `as_printed` is over 73 and 46 models: two standard models
--       counted as robust, three models of no pair.
with counted as (
    select
        dataset,
        if(robust, 'robust', 'standard') as kind,
        count(*) as models,
        sum(n_filters)::bigint as n_filters,
        sum(n_sparse)::bigint as n_sparse,
        sum(n_sparse) / sum(n_filters) as sparsity
    from models
    where n_sparse is not null and model_id in (select m.model_id from members as m)
    group by grouping sets ((dataset, robust), (robust))
),

published as (
    select
        kind,
        max(value) filter (where reading = 'as printed') as as_printed,
        max(value) filter (where reading = 'the study') as value,
        max(precision) as precision
    from paper
    where finding = 'sparsity_overall'
    group by kind
)

select
    coalesce(c.dataset, 'all') as dataset,
    c.kind,
    c.models,
    c.n_filters,
    c.n_sparse,
    p.as_printed,
    c.sparsity,
    p.value as published,
    c.sparsity - p.value as difference,
    abs(c.sparsity - p.value) <= p.precision as within
from counted as c
left join published as p on c.kind = p.kind and c.dataset is null
order by c.dataset is null, c.dataset, c.kind
