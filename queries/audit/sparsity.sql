-- title: Sparse filters of every layer
-- finding: Filters whose largest |weight| is at most a hundredth of the layer's, in both views.
-- expect: equal to layers.n_sparse
-- param: model_id, one model; default every model
with counted as (
    select
        f.model_id,
        f.layer_index,
        f.weights,
        count(*) as n_filters,
        if(count(s.layer_linf) > 0, count_if(f.length <= s.layer_linf / 100), null) as n_sparse
    from viewed_filters(getvariable('model_id'), ['trained', 'folded']) as f
    inner join layer_scales(getvariable('model_id'), ['trained', 'folded']) as s
        using (model_id, layer_index, weights)
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
    coalesce(difference = 0, c.n_sparse is null and stored is null) as within
from counted as c
left join layers as l using (model_id, layer_index, weights)
order by c.model_id, c.layer_index, c.weights
