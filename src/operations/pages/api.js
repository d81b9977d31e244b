// The page is drawn from the document.
document.title = 'Postern API'
