"""Somatic mutations (MAF) and copy numbers of genes, as features of persons."""
