-- title: Spatial frequency by depth
-- finding: Robust filters are less constant at most depths beyond the first layer (the mini zoo's are).
-- origin: ours
-- paper: none; needs layers. DCT of filters: Lukasik et al., TMLR 2023
-- expect: constant of robust below standard beyond the first convolution
-- note: As in 26_frequency_by_pair, of the layers of a depth bin: energy along c is
--       c' (scatter + n mean mean') c. Means over pair members; layers without metrics are left out.
with energies as (
    select
        m.dataset,
        m.kind,
        m.pair,
        l.depth_bin,
        d.dct_order,
        sum(
            list_dot_product(l.scatter, d.packed)
            + (l.n_filters - l.n_sparse) * list_dot_product(l.mean, d.c) ** 2
        ) as energy
    from members as m
    inner join layers as l on m.model_id = l.model_id
    cross join dct_basis as d
    where l.weights = 'folded' and l.scatter is not null
    group by all
),

shares as (
    select
        dataset,
        kind,
        pair,
        depth_bin,
        sum(energy) filter (where dct_order = 0) / nullif(sum(energy), 0) as constant,
        sum(energy) filter (where dct_order = 1) / nullif(sum(energy), 0) as order_1,
        sum(energy) filter (where dct_order = 2) / nullif(sum(energy), 0) as order_2
    from energies
    group by dataset, kind, pair, depth_bin
)

select
    dataset,
    depth_bin,
    kind,
    count(constant) as pairs,
    avg(constant) as constant,
    avg(order_1) as order_1,
    avg(order_2) as order_2
from shares
group by dataset, depth_bin, kind
having count(constant) > 0
order by dataset, depth_bin, kind
