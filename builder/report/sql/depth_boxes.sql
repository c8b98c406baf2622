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
    dataset,
    metric,
    weights,
    depth_bin,
    kind,
    box.n_points as n_points,
    box.whisker_low as whisker_low,
    box.q1 as q1,
    box.median as median,
    box.q3 as q3,
    box.whisker_high as whisker_high,
    box.mean as mean,
    box.n_outliers as n_outliers
from boxes
order by dataset, metric, weights, depth_bin, kind
