-- title: Variance entropy by depth
-- finding: Robust CIFAR models form more diverse filters in every depth bin except the first layer.
-- paper: plots/entropy_normal_vs_robust.pdf; plots/metrics_normal_vs_robust.pdf
-- expect: robust above standard beyond the first convolution
-- note: The combined figure weights layers by the length of a text (`layers alike`, nearly equal weights,
--       so it is met only roughly); the separate figure by non-sparse filters. Both are given.
with alike as (
    select
        m.dataset,
        m.kind,
        m.pair,
        l.depth_bin,
        avg(l.variance_entropy) as value
    from members as m
    inner join layers as l on m.model_id = l.model_id
    where l.weights = 'folded' and isfinite(l.variance_entropy)
    group by all
),

boxes as (
    select
        dataset,
        kind,
        depth_bin,
        'layers alike' as reading,
        box(list(value)) as box
    from alike
    group by all
    union all
    select
        dataset,
        kind,
        depth_bin,
        'weighted by filters' as reading,
        box
    from depth_boxes
    where metric = 'variance_entropy' and weights = 'folded'
)

select
    b.dataset,
    b.depth_bin,
    b.kind,
    b.reading,
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
    if(b.reading = 'layers alike', null, difference <= p.precision) as within
from boxes as b
left join published_boxes as p
    on
        p.metric = 'variance_entropy'
        and b.dataset = p.dataset
        and b.kind = p.kind
        and b.depth_bin = p.depth_bin
        and b.reading = p.reading
order by b.dataset, b.depth_bin, b.kind, b.reading
