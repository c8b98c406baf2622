-- title: Divergence by depth
-- finding: The first layer (0.47 / 0.63) and the deepest ones diverge; those between hardly do.
-- paper: plots/divergence_by_depth.pdf; pca.ipynb cell 43
-- expect: bins 0, 9 and 10 far above the others on CIFAR
-- note: Depth bin 0 is the first convolution, which ImageNet models have as 7x7: none there.
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
where d.reading = 'pairs' and d.depth_bin is not null
order by d.dataset, d.depth_bin
