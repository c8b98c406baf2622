-- title: Sparsity by depth
-- finding: Robust CIFAR models are less sparse in nearly every depth bin, but sparser in the first layer.
-- paper: plots/metrics_normal_vs_robust.pdf
-- expect: robust below standard beyond the first convolution
-- note: One value per (depth bin, pair member), of layers whose weights are finite. `difference` is the
--       largest of the seven statistics.
select
    b.dataset,
    b.depth_bin,
    b.kind,
    b.box.n_points,
    b.box.whisker_low,
    b.box.q1,
    b.box.median,
    b.box.q3,
    b.box.whisker_high,
    b.box.n_outliers,
    p.box['median'] as published_median,
    b.box.mean,
    p.box['mean'] as published,
    box_difference(b.box, p.box) as difference,
    difference <= p.precision as within
from depth_boxes as b
left join published_boxes as p using (metric, dataset, kind, depth_bin)
where b.metric = 'sparsity' and b.weights = 'folded'
order by b.dataset, b.depth_bin, b.kind
