-- The stratified sample: a few filters of every layer.
select
    f.model_id,
    f.layer_index,
    f.out_channel,
    f.in_channel,
    f.linf,
    f.bn_scale,
    [f.w00, f.w01, f.w02, f.w10, f.w11, f.w12, f.w20, f.w21, f.w22] as w
from filters_sample as f
where f.model_id in (select c.model_id from chosen as c)
order by f.model_id, f.layer_index, f.out_channel, f.in_channel
