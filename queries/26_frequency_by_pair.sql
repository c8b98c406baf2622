-- title: Spatial frequency of filters
-- finding: Robust filters are less constant (71 of 71 pairs) and, on CIFAR, of higher order (66 of 66).
-- origin: ours
-- paper: none; computed from pca_dict.cpkl. DCT of filters: Lukasik et al., TMLR 2023
-- expect: constant of robust below standard, order 2 above on CIFAR
-- note: Shares of the energy (sum of squares) of a model's scaled, non-sparse, folded filters on the nine
--       3x3 DCT-II functions, summed by their order max(u, v): 0 is the constant. Says nothing of sparse
--       filters, of the scale of a filter, nor of what a network passes.
with energies as (
    select
        p.basis,
        d.dct_order,
        d.row_frequency,
        d.column_frequency,
        sum((p.n_samples - 1) * p.explained_variance * list_dot_product(p.direction, d.c) ** 2)
        + any_value(p.n_samples * list_dot_product(p.mean, d.c) ** 2) as energy
    from pca as p
    cross join dct_basis as d
    where p.weights = 'folded' and p.explained_variance is not null
    group by all
),

shares as (
    select
        basis,
        sum(energy) filter (where dct_order = 0) / nullif(sum(energy), 0) as constant,
        sum(energy) filter (where dct_order = 1) / nullif(sum(energy), 0) as order_1,
        sum(energy) filter (where dct_order = 2) / nullif(sum(energy), 0) as order_2
    from energies
    group by basis
)

select
    p.dataset,
    p.architecture,
    p.robust_model_id,
    p.standard_model_id,
    s.constant as standard_constant,
    r.constant as robust_constant,
    s.order_1 as standard_order_1,
    r.order_1 as robust_order_1,
    s.order_2 as standard_order_2,
    r.order_2 as robust_order_2,
    r.constant - s.constant as constant_difference,
    r.order_2 - s.order_2 as order_2_difference
from study_pairs as p
inner join shares as r on p.robust_model_id = r.basis
inner join shares as s on p.standard_model_id = s.basis
order by p.dataset, p.robust_model_id
