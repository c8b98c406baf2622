-- title: Orthogonality of one layer
-- finding: 1 - sum |W W' - I| / (n (n - 1)) over the normalised output channels of a layer.
-- expect: equal to layers.orthogonality
-- param: model_id, the model; default the first one
-- param: layer_index, the 3x3 layer; default 0
-- param: weights, the view; default folded
with first_model as (
    -- Not min(model_id): DuckDB 1.5.0 answers that with the start of the name alone.
    select model_id
    from models
    order by model_id
    limit 1
),

layer as (
    select layers.*
    from layers
    where
        layers.model_id = coalesce(getvariable('model_id'), (select f.model_id from first_model as f))
        and layers.layer_index = coalesce(getvariable('layer_index')::integer, 0)
        and layers.weights = coalesce(getvariable('weights'), 'folded')
),

weighted as (
    select
        f.out_channel,
        f.in_channel,
        if(l.weights = 'folded', f.bn_scale, 1::float) as factor,
        (f.w00 * factor)::double as w00,
        (f.w01 * factor)::double as w01,
        (f.w02 * factor)::double as w02,
        (f.w10 * factor)::double as w10,
        (f.w11 * factor)::double as w11,
        (f.w12 * factor)::double as w12,
        (f.w20 * factor)::double as w20,
        (f.w21 * factor)::double as w21,
        (f.w22 * factor)::double as w22
    from filters as f
    inner join layer as l using (model_id, layer_index)
),

norms as (
    select
        out_channel,
        sqrt(sum(
            w00 * w00
            + w01 * w01
            + w02 * w02
            + w10 * w10
            + w11 * w11
            + w12 * w12
            + w20 * w20
            + w21 * w21
            + w22 * w22
        )) as norm
    from weighted
    group by out_channel
),

products as (
    select
        a.out_channel as one,
        b.out_channel as other,
        sum(
            a.w00 * b.w00 + a.w01 * b.w01 + a.w02 * b.w02
            + a.w10 * b.w10 + a.w11 * b.w11 + a.w12 * b.w12
            + a.w20 * b.w20 + a.w21 * b.w21 + a.w22 * b.w22
        ) as product
    from weighted as a
    inner join weighted as b on a.in_channel = b.in_channel and a.out_channel < b.out_channel
    group by all
),

-- A channel of zeros stays zero, so that it counts 1 on the diagonal.
channels as (
    select
        count(*) as n,
        count_if(norm = 0) as n_zero,
        bool_and(isfinite(norm)) as finite
    from norms
),

cosines as (
    select coalesce(sum(2 * abs(p.product) / nullif(a.norm * b.norm, 0)), 0) as total
    from products as p
    inner join norms as a on p.one = a.out_channel
    inner join norms as b on p.other = b.out_channel
)

select
    l.model_id,
    l.layer,
    l.weights,
    c.n,
    if(c.n > 1 and c.finite, 1 - (s.total + c.n_zero) / (c.n * (c.n - 1)), null) as value,
    l.orthogonality as stored,
    value - stored as difference,
    coalesce(abs(difference) <= 1e-6, value is null and stored is null) as within
from layer as l
cross join channels as c
cross join cosines as s
order by l.model_id, l.layer, l.weights
