-- title: Divergence per data set, from the filters
-- finding: Symmetric KL of robust and standard coefficient histograms, all the way from the raw filters.
-- expect: equal to what 14_divergence makes of the stored histograms (`pairs`)
with basis as (
    select
        component,
        direction as d,
        list_dot_product(direction, mean) as centre
    from pca
    where basis = 'full' and weights = 'folded'
),

extent as (
    select
        min(bin_low) as low,
        max(bin_high) as high,
        (high - low) / 70 as width
    from histograms
),

lengths as not materialized (
    select
        model_id,
        layer_index,
        (linf * abs(bn_scale))::double as length,
        (w00 * bn_scale)::double as x0,
        (w01 * bn_scale)::double as x1,
        (w02 * bn_scale)::double as x2,
        (w10 * bn_scale)::double as x3,
        (w11 * bn_scale)::double as x4,
        (w12 * bn_scale)::double as x5,
        (w20 * bn_scale)::double as x6,
        (w21 * bn_scale)::double as x7,
        (w22 * bn_scale)::double as x8
    from filters
),

largest as (
    select
        model_id,
        layer_index,
        max(length) as layer_linf
    from lengths
    group by all
),

kept as (
    select
        f.*,
        l.depth_bin
    from lengths as f
    inner join largest as g using (model_id, layer_index)
    inner join layers as l using (model_id, layer_index)
    where f.length > g.layer_linf / 100 and l.weights = 'folded'
),

coefficients as (
    select
        k.model_id,
        k.depth_bin,
        b.component,
        (
            k.x0 * b.d[1] + k.x1 * b.d[2] + k.x2 * b.d[3]
            + k.x3 * b.d[4] + k.x4 * b.d[5] + k.x5 * b.d[6]
            + k.x6 * b.d[7] + k.x7 * b.d[8] + k.x8 * b.d[9]
        ) / k.length - b.centre as coefficient
    from kept as k
    cross join basis as b
),

counted as (
    select
        c.model_id,
        c.depth_bin,
        c.component,
        if(e.width > 0, greatest(least(floor((c.coefficient - e.low) / e.width), 69), 0), 0)::smallint as bin,
        count(*) as n
    from coefficients as c
    cross join extent as e
    group by all
),

histogram_of as (
    select
        'filters' as origin,
        model_id,
        component,
        bin,
        n
    from counted
    union all
    select
        'histograms' as origin,
        model_id,
        component,
        bin,
        n
    from histograms
),

members as (
    select
        dataset,
        'robust' as kind,
        robust_model_id as model_id
    from pairs
    union all
    select
        dataset,
        'standard' as kind,
        standard_model_id as model_id
    from pairs
),

grid as (
    select
        m.dataset,
        m.kind,
        b.component,
        unnest(range(70))::smallint as bin
    from (select distinct
        dataset,
        kind
    from members) as m
    cross join basis as b
),

summed as (
    select
        h.origin,
        m.dataset,
        m.kind,
        h.component,
        h.bin,
        sum(h.n)::double as n
    from members as m
    inner join histogram_of as h using (model_id)
    group by all
),

o as (select distinct origin from summed),

filled as (
    select
        o.origin,
        g.dataset,
        g.kind,
        g.component,
        g.bin,
        if(coalesce(s.n, 0) = 0, 1.1920928955078125e-07, s.n) as n
    from grid as g
    cross join o
    left join summed as s using (origin, dataset, kind, component, bin)
),

shares as (
    select
        * exclude (n),
        n / sum(n) over (partition by origin, dataset, kind, component) as share
    from filled
),

divergences as (
    select
        r.dataset,
        r.origin,
        sum(w.explained_variance_ratio * (r.share - s.share) * ln(r.share / s.share)) as divergence
    from shares as r
    inner join shares as s using (origin, dataset, component, bin)
    inner join pca as w on w.basis = 'full' and w.weights = 'folded' and r.component = w.component
    where r.kind = 'robust' and s.kind = 'standard'
    group by all
)

select
    dataset,
    max(divergence) filter (where origin = 'filters') as value,
    max(divergence) filter (where origin = 'histograms') as stored,
    value - stored as difference,
    abs(difference) <= 1e-6 * (1 + stored) as within
from divergences
group by dataset
order by dataset
