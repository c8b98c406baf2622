-- The layers behind the depth figures.
select
    l.dataset,
    l.model_id,
    if(m.robust, 'robust', 'standard') as kind,
    l.weights,
    l.layer_index,
    l.layer,
    l.depth_bin,
    l.conv_depth,
    l.n_filters,
    l.sparsity,
    l.variance_entropy,
    l.orthogonality
from layers as l
inner join models as m on l.model_id = m.model_id
where l.model_id in (select c.model_id from chosen as c)
order by l.dataset, l.model_id, l.weights, l.layer_index
