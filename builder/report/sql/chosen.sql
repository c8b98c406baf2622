-- The models whose details (layers, bases, first layer, sample) the page holds: pairs come first.
with paired as (
    select distinct model_id
    from members
)

select m.model_id
from models as m
left join paired as p on m.model_id = p.model_id
order by p.model_id is null, m.dataset, m.model_id
limit cast(getvariable('details') as bigint)
