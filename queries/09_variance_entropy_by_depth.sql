-- title: Variance entropy by depth
-- finding: Robust CIFAR models form more diverse filters in every depth bin except the first layer.
-- paper: plots/entropy_normal_vs_robust.pdf; plots/metrics_normal_vs_robust.pdf
-- expect: robust above standard beyond the first convolution
-- note: The combined figure weights layers by the length of a text (`layers alike`, nearly equal weights,
--       so it is met only roughly); the separate figure by non-sparse filters. Both are given.
with measured as (
    select
        m.dataset,
        m.kind,
        m.pair,
        l.depth_bin,
        l.n_filters - l.n_sparse as n,
        l.variance_entropy
    from members as m
    inner join layers as l on m.model_id = l.model_id
    where l.weights = 'folded' and l.variance_entropy is not null
),

per_member as (
    select
        dataset,
        kind,
        pair,
        depth_bin,
        'weighted by filters' as reading,
        sum(variance_entropy * n) / sum(n) as value
    from measured
    group by all
    union all
    select
        dataset,
        kind,
        pair,
        depth_bin,
        'layers alike' as reading,
        avg(variance_entropy) as value
    from measured
    group by all
),

boxes as (
    select
        dataset,
        kind,
        depth_bin,
        reading,
        box(list(value)) as box
    from per_member
    where value is not null
    group by all
),

published as (
    select
        dataset,
        kind,
        depth_bin,
        reading,
        map(list(metric), list(value)) as box,
        max(precision) as precision
    from paper
    where finding = 'variance_entropy_by_depth'
    group by all
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
left join published as p using (dataset, kind, depth_bin, reading)
order by b.dataset, b.depth_bin, b.kind, b.reading
