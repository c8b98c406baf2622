-- about: models
-- needs: counts of the paper's own models
select
    format(
        '{} robust and {} standard models, {} architectures, {:,} filters',
        coalesce(max(models) filter (where kind = 'robust'), 0),
        coalesce(max(models) filter (where kind = 'standard'), 0),
        max(architectures),
        max(filters)
    ) as shows,
    null::boolean as holds
from answer
where dataset = 'all'
