-- title: Variance entropy by depth
-- finding: Robust CIFAR models form more diverse filters in every depth bin except the first layer.
-- paper: plots/entropy_normal_vs_robust.pdf; plots/metrics_normal_vs_robust.pdf
-- expect: robust above standard beyond the first convolution
-- note: The combined figure weights layers by the length of a text (`layers alike`, nearly equal weights,
--       so it is met only roughly); the separate figure by non-sparse filters. Both are given.
with members as (
    select
        dataset,
        'robust' as kind,
        robust_model_id as pair,
        robust_model_id as model_id
    from pairs
    union all
    select
        dataset,
        'standard' as kind,
        robust_model_id as pair,
        standard_model_id as model_id
    from pairs
),

measured as (
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
        count(*) as n_points,
        quantile_cont(value, 0.25) as q1,
        quantile_cont(value, 0.5) as median,
        quantile_cont(value, 0.75) as q3,
        avg(value) as mean
    from per_member
    where value is not null
    group by all
),

fences as (
    select
        *,
        q1 - 1.5 * (q3 - q1) as low_fence,
        q3 + 1.5 * (q3 - q1) as high_fence
    from boxes
),

-- A whisker reaches the last value inside the fence, and never into the box.
whiskers as (
    select
        b.*,
        min(m.value) filter (where m.value >= b.low_fence) as low,
        max(m.value) filter (where m.value <= b.high_fence) as high,
        count(*) filter (where m.value < b.low_fence or m.value > b.high_fence) as n_outliers
    from fences as b
    inner join per_member as m using (dataset, kind, depth_bin, reading)
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
    w.dataset,
    w.depth_bin,
    w.kind,
    w.reading,
    w.n_points,
    least(w.low, w.q1) as whisker_low,
    w.q1,
    w.median,
    w.q3,
    greatest(w.high, w.q3) as whisker_high,
    w.n_outliers,
    p.box['median'] as published_median,
    w.mean,
    p.box['mean'] as published,
    greatest(
        abs(whisker_low - p.box['whisker_low']),
        abs(w.q1 - p.box['q1']),
        abs(w.median - p.box['median']),
        abs(w.q3 - p.box['q3']),
        abs(whisker_high - p.box['whisker_high']),
        abs(w.mean - p.box['mean']),
        abs(w.n_outliers - p.box['n_outliers'])
    ) as difference,
    if(w.reading = 'layers alike', null, difference <= p.precision) as within
from whiskers as w
left join published as p using (dataset, kind, depth_bin, reading)
order by w.dataset, w.depth_bin, w.kind, w.reading
