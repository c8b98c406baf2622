-- title: Where robust and standard filters differ most
-- finding: The largest gaps are in the deepest layers and in the very first convolution.
-- paper: plots/divergence_by_depth.pdf; abstract
-- expect: place 1 is the first convolution or one of the last two deciles on CIFAR
-- note: `published` is the published place of the depth bin. On ImageNet the published maximum is at bin 8.
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
where d.reading = 'pairs' and d.depth_bin is not null
order by d.dataset, place
