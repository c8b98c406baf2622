-- title: Divergence of robust and standard filters
-- finding: Robust and standard filters differ most on CIFAR-10, least on ImageNet (0.62 / 0.17 / 0.018).
-- paper: pca.ipynb cells 41, 46-48
-- expect: cifar10 above cifar100 above imagenet
-- note: Symmetric KL of the coefficient histograms on the full basis, weighted by explained variance.
--       Standard models once per pair (`pairs`) or each model once (`distinct`); both are published.
--       Published bins also span models outside the study, hence the precision of 1 %.
with members as (
    select
        'pairs' as reading,
        dataset,
        'robust' as kind,
        robust_model_id as model_id
    from pairs
    union all
    select
        'pairs' as reading,
        dataset,
        'standard' as kind,
        standard_model_id as model_id
    from pairs
),

readings as (
    select * from members
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
        sum(h.n)::double as n
    from readings as m
    inner join histograms as h on m.model_id = h.model_id
    group by all
),

-- An empty bin becomes float32 epsilon once the group is summed, never before.
filled as (
    select
        * exclude (n),
        if(n = 0, 1.1920928955078125e-07, n) as n
    from counted
    qualify sum(n) over (partition by reading, dataset, kind, component) > 0
),

shares as (
    select
        * exclude (n),
        n / sum(n) over (partition by reading, dataset, kind, component) as share
    from filled
),

divergences as (
    select
        r.reading,
        r.dataset,
        sum(w.explained_variance_ratio * (r.share - s.share) * ln(r.share / s.share)) as divergence
    from shares as r
    inner join shares as s
        on
            r.kind = 'robust'
            and s.kind = 'standard'
            and r.reading = s.reading
            and r.dataset = s.dataset
            and r.component = s.component
            and r.bin = s.bin
    inner join pca as w on w.basis = 'full' and w.weights = 'folded' and r.component = w.component
    group by all
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
