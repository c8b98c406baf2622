-- One value per chosen model, depth bin and view: the line of a followed model.
select
    v.dataset,
    v.model_id,
    if(m.robust, 'robust', 'standard') as kind,
    v.weights,
    v.depth_bin,
    v.metric,
    v.value
from depth_values as v
inner join models as m on v.model_id = m.model_id
where isfinite(v.value) and v.model_id in (select c.model_id from chosen as c)
order by v.dataset, v.model_id, v.weights, v.metric, v.depth_bin
