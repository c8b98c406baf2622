-- title: What the first layer lets pass
-- finding: First layers of robust models suppress small perturbations of the image.
-- paper: first-layer figures (pictures of one model; no number is published)
-- expect: ratio below 1: less passes the robust first layer than the standard one
-- note: Our measure: relative change behind the activation (post) or before it (pre) over that of the
--       input; activation_pass: the share of the change that the activation lets through. An
--       ensemble's first convolutions are averaged. Pairs measured at different eps are left out,
--       and models without a response.
with per_model as (
    select
        model_id,
        perturbation,
        eps,
        max(n_images) as n_images,
        avg(response_pre) as pre,
        avg(response_post) as post,
        avg(activation_pass) as activation_pass
    from first_layer
    where out_channel is null and response_pre is not null
    group by model_id, perturbation, eps
)

select
    p.dataset,
    p.architecture,
    r.perturbation,
    p.robust_model_id,
    p.standard_model_id,
    r.eps,
    r.n_images,
    s.pre as standard_pre,
    r.pre as robust_pre,
    s.post as standard_post,
    r.post as robust_post,
    s.activation_pass as standard_activation_pass,
    r.activation_pass as robust_activation_pass,
    r.post / nullif(s.post, 0) as ratio
from study_pairs as p
inner join per_model as r on p.robust_model_id = r.model_id
inner join per_model as s
    on p.standard_model_id = s.model_id and r.perturbation = s.perturbation and r.eps = s.eps
order by p.dataset, r.perturbation, p.robust_model_id
