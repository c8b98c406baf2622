-- about: models
-- needs: pairs with known accuracies
select
    format('less accurate in {} of {} pairs', count_if(clean_loss > 0), count(clean_loss)) as shows,
    if(count(clean_loss) > 0, 2 * count_if(clean_loss > 0) > count(clean_loss), null) as holds
from answer
