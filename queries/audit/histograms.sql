-- title: Coefficient histograms of every model
-- finding: Scaled non-sparse folded filters, centred and projected on the full basis, in 70 equal bins.
-- expect: equal to histograms.n
-- note: `difference` counts filters that fell into another bin; a millionth may, by rounding at an edge.
-- param: model_id, one model; default every model
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
    where model_id = coalesce(getvariable('model_id'), model_id)
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

compared as (
    select
        h.model_id,
        h.depth_bin,
        h.component,
        h.n as stored,
        coalesce(c.n, 0) as n
    from histograms as h
    left join counted as c using (model_id, depth_bin, component, bin)
    where h.model_id = coalesce(getvariable('model_id'), h.model_id)
)

select
    model_id,
    depth_bin,
    component,
    sum(n)::bigint as filters,
    sum(stored)::bigint as stored_filters,
    sum(abs(n - stored)) / 2 as difference,
    filters = stored_filters and difference <= 1e-6 * stored_filters + 1 as within
from compared
group by model_id, depth_bin, component
order by model_id, depth_bin, component
