-- title: Orthogonality by depth
-- finding: Robust CIFAR models form more orthogonal filters in every depth bin except the first layer.
-- paper: plots/metrics_normal_vs_robust.pdf
-- expect: robust above standard beyond the first convolution
-- note: One value per (depth bin, pair member). `difference` is the largest of the seven statistics.
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

per_member as (
    select
        m.dataset,
        m.kind,
        m.pair,
        l.depth_bin,
        sum(l.orthogonality * l.out_channels) / sum(l.out_channels)
        filter (where l.orthogonality is not null) as value
    from members as m
    inner join layers as l on m.model_id = l.model_id
    where l.weights = 'folded'
    group by all
),

boxes as (
    select
        dataset,
        kind,
        depth_bin,
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
    inner join per_member as m using (dataset, kind, depth_bin)
    group by all
),

published as (
    select
        dataset,
        kind,
        depth_bin,
        map(list(metric), list(value)) as box,
        max(precision) as precision
    from paper
    where finding = 'orthogonality_by_depth'
    group by all
)

select
    w.dataset,
    w.depth_bin,
    w.kind,
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
    difference <= p.precision as within
from whiskers as w
left join published as p using (dataset, kind, depth_bin)
order by w.dataset, w.depth_bin, w.kind
