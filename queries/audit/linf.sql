-- title: Scale of every filter
-- finding: linf is the largest of the nine absolute weights.
-- expect: no filter differs
-- param: model_id, one model; default every model
select
    model_id,
    layer_index,
    count(*) as n_filters,
    count(*) filter (
        where
        linf <> greatest(
            abs(w00), abs(w01), abs(w02), abs(w10), abs(w11), abs(w12), abs(w20), abs(w21), abs(w22)
        )
    ) as difference,
    difference = 0 as within
from filters
where model_id = coalesce(getvariable('model_id'), model_id)
group by model_id, layer_index
order by model_id, layer_index
