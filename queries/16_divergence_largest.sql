-- title: Where robust and standard filters differ most
-- finding: The largest gaps are in the deepest layers and in the very first convolution.
-- paper: plots/divergence_by_depth.pdf; abstract
-- expect: place 1 is the first convolution or one of the last two deciles on CIFAR
-- note: `published` is the published place of the depth bin. On ImageNet the published maximum is at bin 8.
with members as (
    select
        dataset,
        'robust' as kind,
        robust_model_id as model_id
    from pairs
    union all
    select
        dataset,
        'standard' as kind,
        standard_model_id as model_id
    from pairs
),

counted as (
    select
        m.dataset,
        h.depth_bin,
        m.kind,
        h.component,
        h.bin,
        sum(h.n)::double as n
    from members as m
    inner join histograms as h on m.model_id = h.model_id
    group by all
),

-- An empty bin becomes float32 epsilon once the group is summed, never before.
filled as (
    select
        * exclude (n),
        if(n = 0, 1.1920928955078125e-07, n) as n
    from counted
    qualify sum(n) over (partition by dataset, depth_bin, kind, component) > 0
),

shares as (
    select
        * exclude (n),
        n / sum(n) over (partition by dataset, depth_bin, kind, component) as share
    from filled
),

divergences as (
    select
        r.dataset,
        r.depth_bin,
        sum(w.explained_variance_ratio * (r.share - s.share) * ln(r.share / s.share)) as divergence
    from shares as r
    inner join shares as s
        on
            r.kind = 'robust'
            and s.kind = 'standard'
            and r.dataset = s.dataset
            and r.depth_bin = s.depth_bin
            and r.component = s.component
            and r.bin = s.bin
    inner join pca as w on w.basis = 'full' and w.weights = 'folded' and r.component = w.component
    group by all
)

select
    d.dataset,
    rank() over (partition by d.dataset order by d.divergence desc, d.depth_bin asc) as place,
    d.depth_bin,
    if(d.depth_bin = 0, 'first', if(d.depth_bin > 8, 'deepest', 'between')) as region,
    d.divergence,
    d.divergence / max(d.divergence) over (partition by d.dataset) as relative,
    rank() over (partition by d.dataset order by p.value desc, d.depth_bin asc) as published,
    place - published as difference,
    if(p.value is null, null, difference = 0) as within
from divergences as d
left join paper as p
    on p.finding = 'divergence_by_depth' and d.dataset = p.dataset and d.depth_bin = p.depth_bin
order by d.dataset, place
