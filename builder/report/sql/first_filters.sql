-- All filters of each chosen model's first convolution of three channels (several in an ensemble).
with first_layers as (
    select
        l.model_id,
        l.layer_index,
        l.layer
    from layers as l
    where
        l.weights = 'trained'
        and l.conv_depth = 0
        and l.in_channels = 3
        and l.groups = 1
        and l.model_id in (select c.model_id from chosen as c)
)

select
    f.model_id,
    s.layer,
    f.layer_index,
    f.out_channel,
    f.in_channel,
    f.bn_scale,
    [f.w00, f.w01, f.w02, f.w10, f.w11, f.w12, f.w20, f.w21, f.w22] as w
from filters as f
inner join first_layers as s on f.model_id = s.model_id and f.layer_index = s.layer_index
order by f.model_id, f.layer_index, f.out_channel, f.in_channel
