-- Response of the first layer per channel, largest first; the whole layer has no channel.
select
    f.dataset,
    f.model_id,
    if(m.robust, 'robust', 'standard') as kind,
    f.perturbation,
    f.layer,
    f.out_channel,
    row_number() over (
        partition by f.model_id, f.perturbation
        order by f.response_post desc nulls last, f.layer asc, f.out_channel asc
    ) as place,
    f.response_pre,
    f.response_post,
    f.activation_pass
from first_layer as f
inner join models as m on f.model_id = m.model_id
where f.out_channel is not null and f.model_id in (select c.model_id from chosen as c)
order by f.model_id, f.perturbation, place
