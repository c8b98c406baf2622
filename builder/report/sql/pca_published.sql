-- The paper's union bases.
with ratios as (
    select
        kind as basis,
        component,
        value as ratio,
        sum(value) over (partition by kind order by component) as cumulated
    from paper
    where finding = 'explained_variance' and metric = 'ratio'
),

directions as (
    select
        kind as basis,
        component,
        list(value order by entry) as direction
    from paper
    where finding = 'basis_distance'
    group by kind, component
)

select
    r.basis,
    r.component + 1 as component,
    r.ratio,
    r.cumulated,
    d.direction
from ratios as r
left join directions as d on r.basis = d.basis and r.component = d.component
order by r.basis, r.component
