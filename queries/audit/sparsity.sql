-- title: Sparse filters of every layer
-- finding: Filters whose largest |weight| is at most a hundredth of the layer's, in both views.
-- expect: equal to layers.n_sparse
-- param: model_id, one model; default every model
with largest as (
    select
        model_id,
        layer_index,
        weights,
        max(length) as layer_linf
    from viewed_filters(getvariable('model_id'), ['trained', 'folded'])
    group by all
),

counted as (
    select
        f.model_id,
        f.layer_index,
        f.weights,
        count(*) as n_filters,
        count(*) filter (where f.length <= g.layer_linf / 100) as n_sparse
    from viewed_filters(getvariable('model_id'), ['trained', 'folded']) as f
    inner join largest as g using (model_id, layer_index, weights)
    group by all
)

select
    c.model_id,
    c.layer_index,
    c.weights,
    c.n_filters,
    c.n_sparse,
    l.n_sparse as stored,
    c.n_sparse - l.n_sparse as difference,
    difference = 0 as within
from counted as c
left join layers as l using (model_id, layer_index, weights)
order by c.model_id, c.layer_index, c.weights
