-- title: Divergence of robust and standard filters
-- finding: Robust and standard filters differ most on CIFAR-10, least on ImageNet (0.62 / 0.17 / 0.018).
-- paper: pca.ipynb cells 41, 46-48
-- expect: cifar10 above cifar100 above imagenet
-- note: Symmetric KL of the coefficient histograms on the full basis, weighted by explained variance.
--       Standard models once per pair (`pairs`) or each model once (`distinct`); both are published.
--       Published bins also span models outside the study, hence the precision of 1 %.
with readings as (
    select
        'pairs' as reading,
        dataset,
        kind,
        model_id
    from members
    union all
    select distinct
        'distinct' as reading,
        dataset,
        kind,
        model_id
    from members
),

counted as (
    select
        m.reading,
        m.dataset,
        m.kind,
        h.component,
        h.bin,
        sum(h.n) as n
    from readings as m
    inner join histograms as h on m.model_id = h.model_id
    group by all
),

per_component as (
    select
        reading,
        dataset,
        component,
        divergence(
            list(n order by bin) filter (where kind = 'robust'),
            list(n order by bin) filter (where kind = 'standard')
        ) as divergence
    from counted
    group by all
),

divergences as (
    select
        c.reading,
        c.dataset,
        sum(w.explained_variance_ratio * c.divergence) as divergence
    from per_component as c
    inner join pca as w on w.basis = 'full' and w.weights = 'folded' and c.component = w.component
    group by all
    having divergence is not null
)

select
    d.reading,
    d.dataset,
    d.divergence,
    p.value as published,
    d.divergence - p.value as difference,
    abs(d.divergence - p.value) <= p.precision as within
from divergences as d
left join paper as p on p.finding = 'divergence' and d.reading = p.reading and d.dataset = p.dataset
order by d.reading desc, d.dataset asc
