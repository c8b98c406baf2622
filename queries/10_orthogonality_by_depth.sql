-- title: Orthogonality by depth
-- finding: Robust CIFAR models form more orthogonal filters in every depth bin except the first layer.
-- paper: plots/metrics_normal_vs_robust.pdf
-- expect: robust above standard beyond the first convolution
-- note: One value per (depth bin, pair member). `difference` is the largest of the seven statistics.
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
where b.metric = 'orthogonality' and b.weights = 'folded'
order by b.dataset, b.depth_bin, b.kind
