-- title: Mean and scatter of every layer
-- finding: First and second moments of the scaled non-sparse filters, in both views.
-- expect: equal to layers.mean and layers.scatter
-- note: Differences are the largest of 9 and of 45 entries; `within` asks 1e-6 of the trace.
-- param: model_id, one model; default every model
with entries as (
    select
        m.*,
        abs(m.sum_i / m.n - l.mean[m.i]) as off_mean,
        l.scatter[m.entry] as stored
    from moments(getvariable('model_id'), ['trained', 'folded']) as m
    inner join layers as l using (model_id, layer_index, weights)
)

select
    model_id,
    layer_index,
    weights,
    n,
    sum(stored) filter (where i = j) as trace,
    max(off_mean) as mean_difference,
    max(abs(product - sum_i * sum_j / n - stored)) as difference,
    mean_difference <= 1e-6 and difference <= 1e-6 * trace + 1e-9 as within
from entries
group by model_id, layer_index, weights, n
order by model_id, layer_index, weights
