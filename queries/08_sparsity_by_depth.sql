-- title: Sparsity by depth
-- finding: Robust CIFAR models are less sparse in nearly every depth bin, but sparser in the first layer.
-- paper: plots/metrics_normal_vs_robust.pdf
-- expect: robust below standard beyond the first convolution
-- note: One value per (depth bin, pair member), of layers whose weights are finite. `difference` is the
--       largest of the seven statistics.
with per_member as (
    select
        m.dataset,
        m.kind,
        m.pair,
        l.depth_bin,
        sum(l.n_sparse) / sum(l.n_filters) as value
    from members as m
    inner join layers as l on m.model_id = l.model_id
    where l.weights = 'folded' and l.n_sparse is not null
    group by all
),

boxes as (
    select
        dataset,
        kind,
        depth_bin,
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
        map(list(metric), list(value)) as box,
        max(precision) as precision
    from paper
    where finding = 'sparsity_by_depth'
    group by all
)

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
from boxes as b
left join published as p using (dataset, kind, depth_bin)
order by b.dataset, b.depth_bin, b.kind
