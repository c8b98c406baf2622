-- title: Metrics of the first layer
-- finding: First layers of robust models are sparser (0.12 against 0.02) and less diverse on CIFAR-10.
-- paper: plots/metrics_normal_vs_robust.pdf, plots/entropy_normal_vs_robust.pdf, first bins
-- expect: sparsity of robust above standard, variance entropy below
-- note: Mean over pairs of the first convolution, so none on ImageNet (7x7 there).
-- An ensemble has one first convolution per member: each model gets one value, as in the depth figures.
with per_kind as (
    select
        m.dataset,
        m.kind,
        v.metric,
        count(*) as pairs,
        avg(v.value) as mean
    from members as m
    inner join depth_values as v on m.model_id = v.model_id
    where v.weights = 'folded' and v.depth_bin = 0 and v.value is not null
    group by all
)

select
    k.dataset,
    k.metric,
    k.kind,
    k.pairs,
    k.mean,
    p.value as published,
    k.mean - p.value as difference,
    abs(k.mean - p.value) <= p.precision as within
from per_kind as k
left join paper as p
    on
        p.finding = k.metric || '_by_depth'
        and p.metric = 'mean'
        and p.depth_bin = 0
        and coalesce(p.reading, '') <> 'layers alike'
        and k.dataset = p.dataset
        and k.kind = p.kind
order by k.dataset, k.metric, k.kind
