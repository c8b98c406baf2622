-- title: Divergence of robust and standard filters
-- finding: Robust and standard filters differ most on CIFAR-10, least on ImageNet (0.62 / 0.17 / 0.018).
-- paper: pca.ipynb cells 41, 46-48
-- expect: cifar10 above cifar100 above imagenet
-- note: Symmetric KL of the coefficient histograms on the full basis, weighted by explained variance.
--       Standard models once per pair (`pairs`) or each model once (`distinct`); both are published.
--       Published bins also span models outside the study, hence the precision of 1 %.
select
    d.reading,
    d.dataset,
    d.divergence,
    p.value as published,
    d.divergence - p.value as difference,
    abs(d.divergence - p.value) <= p.precision as within
from divergences as d
left join paper as p on p.finding = 'divergence' and d.reading = p.reading and d.dataset = p.dataset
where d.depth_bin is null
order by d.reading desc, d.dataset asc
