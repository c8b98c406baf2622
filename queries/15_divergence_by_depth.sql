-- title: Divergence by depth
-- finding: The first layer (0.47 / 0.63) and the deepest ones diverge; those between hardly do.
-- paper: plots/divergence_by_depth.pdf; pca.ipynb cell 43
-- expect: bins 0, 9 and 10 far above the others on CIFAR
-- note: Depth bin 0 is the first convolution, which ImageNet models have as 7x7: none there.
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
    d.depth_bin,
    d.divergence,
    p.value as published,
    d.divergence - p.value as difference,
    abs(d.divergence - p.value) <= p.precision as within
from divergences as d
left join paper as p
    on p.finding = 'divergence_by_depth' and d.dataset = p.dataset and d.depth_bin = p.depth_bin
order by d.dataset, d.depth_bin
