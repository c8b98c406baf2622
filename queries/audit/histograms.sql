-- title: Coefficient histograms of every model
-- finding: Scaled non-sparse folded filters, centred and projected on the full basis, in 70 equal bins.
-- expect: equal to histograms.n
-- note: `difference` counts filters that fell into another bin; a millionth may, by rounding at an edge.
-- param: model_id, one model; default every model
select
    model_id,
    depth_bin,
    component,
    sum(n)::bigint as filters,
    sum(stored)::bigint as stored_filters,
    sum(abs(n - stored)) / 2 as difference,
    filters = stored_filters and difference <= 1e-6 * stored_filters + 1 as within
from recounted(getvariable('model_id'))
group by model_id, depth_bin, component
order by model_id, depth_bin, component
