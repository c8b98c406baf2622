-- title: What the first layer lets pass
-- finding: First layers of robust models suppress small perturbations of the image.
-- paper: first-layer figures (pictures of one model; no number is published)
-- expect: ratio below 1: less passes the robust first layer than the standard one
-- note: Relative change behind the activation over that of the input; our measure.
select
    p.dataset,
    p.architecture,
    r.perturbation,
    p.robust_model_id,
    p.standard_model_id,
    r.eps,
    r.n_images,
    s.response_pre as standard_pre,
    r.response_pre as robust_pre,
    s.response_post as standard_post,
    r.response_post as robust_post,
    r.response_post / nullif(s.response_post, 0) as ratio
from pairs as p
inner join first_layer as r on p.robust_model_id = r.model_id
inner join first_layer as s on p.standard_model_id = s.model_id and r.perturbation = s.perturbation
where r.out_channel is null and s.out_channel is null
order by p.dataset, r.perturbation, p.robust_model_id, r.layer, s.layer
