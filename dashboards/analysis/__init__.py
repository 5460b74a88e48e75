"""What figures and tables are drawn from: columns, intervals, selections."""
