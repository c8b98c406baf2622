-- title: Models per architecture
-- finding: Robust and standard models share 13 architectures, most of them WideResNets.
-- paper: model_stats.ipynb cell 8
-- expect: equal counts
with counted as (
    select
        dataset,
        architecture,
        if(robust, 'robust', 'standard') as kind,
        count(*) as models,
        min(n_filters) as fewest_filters,
        max(n_filters) as most_filters
    from study_models
    group by all
)

select
    c.dataset,
    c.architecture,
    c.kind,
    c.fewest_filters,
    c.most_filters,
    c.models,
    p.value::bigint as published,
    c.models - p.value::bigint as difference,
    c.models = p.value as within
from counted as c
left join paper as p
    on
        p.finding = 'architectures'
        and c.dataset = p.dataset
        and c.architecture = p.architecture
        and c.kind = p.kind
order by c.dataset, c.architecture, c.kind
