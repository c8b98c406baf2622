-- title: Names that share one set of weights
-- finding: The 43 standard names are 38 distinct sets of weights.
-- paper: pca_dict.cpkl (equal entries; the authors do not say so)
-- expect: 38 distinct standard models
-- note: Found by content: models whose filters are identical, bit for bit.
with counted as (
    select
        dataset,
        if(robust, 'robust', 'standard') as kind,
        count(*) as models,
        count(distinct filters_hash) as distinct_models,
        string_agg(network || ' = ' || same_filters_as, '; ' order by model_id) as duplicates
    from study_models
    where filters_hash is not null
    group by grouping sets ((dataset, robust), (robust))
)

select
    coalesce(c.dataset, 'all') as dataset,
    c.kind,
    c.models,
    c.duplicates,
    c.distinct_models,
    p.value::bigint as published,
    c.distinct_models - p.value::bigint as difference,
    c.distinct_models = p.value as within
from counted as c
left join paper as p
    on p.finding = 'duplicate_models' and c.dataset is not distinct from p.dataset and c.kind = p.kind
order by c.dataset is null, c.dataset, c.kind
