-- about: weights
-- needs: filters of the paper's own models
select
    format('{} distinct of {} standard models', max(distinct_models), max(models)) as shows,
    null::boolean as holds
from answer
where dataset = 'all' and kind = 'standard'
