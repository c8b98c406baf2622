-- title: Models and filters
-- finding: 71 robust models, their 43 standard counterparts, 13 architectures, 995,381,344 filters.
-- paper: model_stats.ipynb cells 3-15; pca.ipynb cell 15
-- expect: equal counts
-- note: The notebook prints 6 standard ImageNet models; three of them are in no pair.
with counted as (
    select
        dataset,
        case when robust then 'robust' when not robust then 'standard' else 'full' end as kind,
        count(*) as models,
        count(distinct architecture) as architectures,
        sum(n_filters)::bigint as filters,
        avg(n_filters) as filters_per_model
    from study_models
    group by grouping sets ((dataset, robust), (robust), ())
    having count(*) > 0
),

published as (
    select
        dataset,
        kind,
        max(value) filter (where metric = 'models')::bigint as models,
        max(value) filter (where metric = 'architectures')::bigint as architectures,
        max(value) filter (where metric = 'filters')::bigint as filters,
        max(value) filter (where metric = 'filters_per_model') as filters_per_model
    from paper
    where finding = 'model_counts'
    group by dataset, kind
)

select
    coalesce(c.dataset, 'all') as dataset,
    c.kind,
    c.architectures,
    c.models,
    p.models as published_models,
    c.filters_per_model,
    c.filters,
    p.filters as published,
    c.filters - p.filters as difference,
    c.models = p.models
    and c.filters = p.filters
    and coalesce(c.architectures = p.architectures, true)
    and coalesce(abs(c.filters_per_model - p.filters_per_model) <= 0.5, true) as within
from counted as c
left join published as p on c.kind = p.kind and c.dataset is not distinct from p.dataset
order by c.dataset is null, c.dataset, c.kind = 'full', c.kind
