-- title: Mean and scatter of every layer
-- finding: First and second moments of the scaled non-sparse filters, in both views.
-- expect: equal to layers.mean and layers.scatter
-- note: Differences are the largest of 9 and of 45 entries; `within` asks 1e-6 of the trace.
-- param: model_id, one model; default every model
with lengths as not materialized (
    select
        model_id,
        layer_index,
        unnest(['trained', 'folded']) as weights,
        unnest([1::float, bn_scale]) as factor,
        unnest([linf, linf * abs(bn_scale)])::double as length,
        w00,
        w01,
        w02,
        w10,
        w11,
        w12,
        w20,
        w21,
        w22
    from filters
    where model_id = coalesce(getvariable('model_id'), model_id)
),

largest as (
    select
        model_id,
        layer_index,
        weights,
        max(length) as layer_linf
    from lengths
    group by all
),

-- In float32 as folding does it, then scaled in float64; sparse filters are left out.
scaled as (
    select
        f.model_id,
        f.layer_index,
        f.weights,
        (f.w00 * f.factor)::double / f.length as x0,
        (f.w01 * f.factor)::double / f.length as x1,
        (f.w02 * f.factor)::double / f.length as x2,
        (f.w10 * f.factor)::double / f.length as x3,
        (f.w11 * f.factor)::double / f.length as x4,
        (f.w12 * f.factor)::double / f.length as x5,
        (f.w20 * f.factor)::double / f.length as x6,
        (f.w21 * f.factor)::double / f.length as x7,
        (f.w22 * f.factor)::double / f.length as x8
    from lengths as f
    inner join largest as g using (model_id, layer_index, weights)
    where f.length > g.layer_linf / 100
),

sums as (
    select
        model_id,
        layer_index,
        weights,
        count(*) as n,
        [
            avg(x0), avg(x1), avg(x2), avg(x3), avg(x4), avg(x5), avg(x6), avg(x7), avg(x8)
        ] as means,
        [
            sum(x0 * x0), sum(x0 * x1), sum(x0 * x2), sum(x0 * x3), sum(x0 * x4), sum(x0 * x5),
            sum(x0 * x6), sum(x0 * x7), sum(x0 * x8), sum(x1 * x1), sum(x1 * x2), sum(x1 * x3),
            sum(x1 * x4), sum(x1 * x5), sum(x1 * x6), sum(x1 * x7), sum(x1 * x8), sum(x2 * x2),
            sum(x2 * x3), sum(x2 * x4), sum(x2 * x5), sum(x2 * x6), sum(x2 * x7), sum(x2 * x8),
            sum(x3 * x3), sum(x3 * x4), sum(x3 * x5), sum(x3 * x6), sum(x3 * x7), sum(x3 * x8),
            sum(x4 * x4), sum(x4 * x5), sum(x4 * x6), sum(x4 * x7), sum(x4 * x8), sum(x5 * x5),
            sum(x5 * x6), sum(x5 * x7), sum(x5 * x8), sum(x6 * x6), sum(x6 * x7), sum(x6 * x8),
            sum(x7 * x7), sum(x7 * x8), sum(x8 * x8)
        ] as products
    from scaled
    group by all
),

entries as (
    select
        s.model_id,
        s.layer_index,
        s.weights,
        s.n,
        s.means,
        l.mean,
        unnest([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4,
            4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 8
        ]) as i,
        unnest([
            0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7, 8, 4, 5,
            6, 7, 8, 5, 6, 7, 8, 6, 7, 8, 7, 8, 8
        ]) as j,
        unnest(s.products) as product,
        unnest(l.scatter) as stored
    from sums as s
    inner join layers as l using (model_id, layer_index, weights)
)

select
    model_id,
    layer_index,
    weights,
    n,
    sum(stored) filter (where i = j) as trace,
    max(abs(means[i + 1] - mean[i + 1])) as mean_difference,
    max(abs(product - n * means[i + 1] * means[j + 1] - stored)) as difference,
    mean_difference <= 1e-6 and difference <= 1e-6 * trace + 1e-9 as within
from entries
group by model_id, layer_index, weights, n
order by model_id, layer_index, weights
