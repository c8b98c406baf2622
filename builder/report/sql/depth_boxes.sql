-- The depth figures' boxes: one value per depth bin and pair member, as in queries 08 to 10.
with boxes as (
    select
        m.dataset,
        v.metric,
        v.weights,
        v.depth_bin,
        m.kind,
        box(list(v.value)) as box
    from members as m
    inner join depth_members as v on m.model_id = v.model_id
    where isfinite(v.value)
    group by m.dataset, v.metric, v.weights, v.depth_bin, m.kind
)

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
from boxes as b
order by b.dataset, b.metric, b.weights, b.depth_bin, b.kind
