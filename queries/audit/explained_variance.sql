-- title: Explained variance of every model
-- finding: The covariance C of a model's filters, and the variance v' C v along each stored direction v.
-- expect: equal to pca.explained_variance_ratio; no covariance between two directions
-- note: SQL has no eigenvalues, so the route is a proof of the stored ones: if the nine unit vectors v
--       diagonalise C (every v' C u is 0, in `off_diagonal`, relative to the trace), then the v' C v are
--       the variances along the principal directions, and their shares the explained variance ratios.
-- param: model_id, one model; default every model
with sums as (
    select
        model_id,
        weights,
        i,
        j,
        sum(n) as n,
        sum(sum_i) as sum_i,
        sum(sum_j) as sum_j,
        sum(product) as product
    from moments(getvariable('model_id'), ['trained', 'folded'])
    group by all
),

covariances as (
    select
        model_id,
        weights,
        i,
        j,
        if(i = j, 1, 2) * (product - sum_i * sum_j / n) / (n - 1) as c
    from sums
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
            c.c * (v.direction[c.i] * u.direction[c.j] + v.direction[c.j] * u.direction[c.i]) / 2
        ) as covariance
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
