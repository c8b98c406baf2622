-- title: Where robust and standard filters differ most
-- finding: The largest gaps are in the deepest layers and in the very first convolution.
-- paper: plots/divergence_by_depth.pdf; abstract
-- expect: place 1 is the first convolution or one of the last two deciles on CIFAR
-- note: `published` is the published place of the depth bin. On ImageNet the published maximum is at bin 8.
with counted as (
    select
        m.dataset,
        h.depth_bin,
        m.kind,
        h.component,
        h.bin,
        sum(h.n) as n
    from members as m
    inner join histograms as h on m.model_id = h.model_id
    group by all
),

per_component as (
    select
        dataset,
        depth_bin,
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
        c.dataset,
        c.depth_bin,
        sum(w.explained_variance_ratio * c.divergence) as divergence
    from per_component as c
    inner join pca as w on w.basis = 'full' and w.weights = 'folded' and c.component = w.component
    group by all
    having divergence is not null
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
