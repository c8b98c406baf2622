-- title: Explained variance of every model
-- finding: The covariance C of a model's filters, and the variance v' C v along each stored direction v.
-- expect: equal to pca.explained_variance_ratio; no covariance between two directions
-- note: SQL has no eigenvalues, so the route is a proof of the stored ones: if the nine unit vectors v
--       diagonalise C (every v' C u is 0, in `off_diagonal`, relative to the trace), then the v' C v are
--       the variances along the principal directions, and their shares the explained variance ratios.
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
        model_id,
        weights,
        n,
        means,
        unnest([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4,
            4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7, 7, 8
        ]) as i,
        unnest([
            0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7, 8, 4, 5,
            6, 7, 8, 5, 6, 7, 8, 6, 7, 8, 7, 8, 8
        ]) as j,
        unnest(products) as product
    from sums
),

covariances as (
    select
        model_id,
        weights,
        i,
        j,
        if(i = j, 1, 2) * (product - n * means[i + 1] * means[j + 1]) / (n - 1) as c
    from entries
    where n > 1
),

traces as (
    select
        model_id,
        weights,
        sum(c) as trace
    from covariances
    where i = j
    group by all
),

-- v' C u, with the entries off the diagonal taken once for both triangles.
along as (
    select
        c.model_id,
        c.weights,
        v.component,
        u.component as other,
        sum(
            c.c
            * (v.direction[c.i + 1] * u.direction[c.j + 1] + v.direction[c.j + 1] * u.direction[c.i + 1])
            / 2
        )
            as covariance
    from covariances as c
    inner join pca as v on c.model_id = v.basis and c.weights = v.weights
    inner join pca as u on c.model_id = u.basis and c.weights = u.weights
    group by all
),

ratios as (
    select
        a.model_id,
        a.weights,
        a.component,
        max(a.covariance / t.trace) filter (where a.component = a.other) as ratio,
        max(abs(a.covariance / t.trace)) filter (where a.component <> a.other) as off_diagonal
    from along as a
    inner join traces as t using (model_id, weights)
    where t.trace > 0
    group by all
)

select
    r.model_id,
    r.weights,
    r.component,
    r.off_diagonal,
    r.ratio,
    p.explained_variance_ratio as stored,
    r.ratio - p.explained_variance_ratio as difference,
    abs(difference) <= 1e-6 and r.off_diagonal <= 1e-6 as within
from ratios as r
inner join pca as p on r.model_id = p.basis and r.weights = p.weights and r.component = p.component
order by r.model_id, r.weights, r.component
