-- Coefficients on the full basis, robust against standard: standard models once per pair.
with counted as (
    select
        m.dataset,
        m.kind,
        h.component,
        h.bin,
        min(h.bin_low) as bin_low,
        max(h.bin_high) as bin_high,
        sum(h.n) as n
    from members as m
    inner join histograms as h on m.model_id = h.model_id
    group by m.dataset, m.kind, h.component, h.bin
)

select
    dataset,
    kind,
    component + 1 as component,
    bin_low,
    bin_high,
    n / sum(n) over (partition by dataset, kind, component) as share
from counted
where n > 0
order by dataset, kind, component, bin_low
