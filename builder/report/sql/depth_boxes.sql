-- The depth figures' boxes: one value per depth bin and pair member, as in queries 08 to 10.
select
    b.dataset,
    b.metric,
    b.weights,
    b.depth_bin,
    b.kind,
    b.box.n_points,
    b.box.whisker_low,
    b.box.q1,
    b.box.median,
    b.box.q3,
    b.box.whisker_high,
    b.box.mean,
    b.box.n_outliers
from depth_boxes as b
order by b.dataset, b.metric, b.weights, b.depth_bin, b.kind
