"""Mistakes in reading a site's data: tables, images, DICOM, slides, variants."""

from __future__ import annotations

from tests.mutants.mutant import Mutants

MUTANTS: Mutants = {
    "subtraction of nested groups not looked for": (
        [("fedml/cohort/groups.py", "        while any(", "        while False and any(")],
        "experiments/studies/test_groups.py::test_of_two_nested_groups_one_is_hidden_in_whichever_order_they_stand",
    ),
    "subtraction from all persons forgets those in no group": (
        [("fedml/cohort/groups.py", "len(rows), min_count)", "int(sizes.sum()), min_count)")],
        "experiments/studies/test_groups.py::test_a_group_is_hidden_if_too_few_persons_are_in_no_group",
    ),
    "a person's part by the other byte order": (
        [("fedml/cohort/table.py", '.digest(), "big")', '.digest(), "little")')],
        "clients/site/test_table.py::test_the_parts_of_known_persons_never_change",
    ),
    "a person's part without the key": (
        [("fedml/cohort/table.py", "key=hashlib.sha256(key.encode()).digest()", 'key=b""')],
        "clients/site/test_table.py::test_another_key_is_another_independent_split",
    ),
    "codes of missing values read as numbers": (
        [("fedml/cohort/clinical.py", "if name in spec.missing and name not in spec.dates:", "if False:")],
        "clients/site/test_table.py",
    ),
    "labels of a mask interpolated": (
        [("fedml/cohort/images/transforms.py", "pixdim=spec.spacing_mm, mode=mode", 'pixdim=spec.spacing_mm, mode="bilinear"')],
        "fedml/cohort/images/test_transforms.py::test_a_mask_s_labels_are_never_mixed",
    ),
    "spacing not turned with the axes": (
        [("fedml/cohort/images/transforms.py", "for direction in after]", "for direction in before]")],
        "experiments/studies/test_quarantine.py::test_orientation_alone_turns_the_spacing_with_the_axes",
    ),
    "a percentile of too few voxels": (
        [("fedml/cohort/images/histograms.py", "percent / 100 * ", "percent / 110 * ")],
        "experiments/studies/test_percentiles.py::test_a_percentile_is_that_of_the_voxels_within_a_bin",
    ),
    "signed rescaled MONOCHROME1 films inverted over the unsigned range": (
        [("fedml/cohort/dicom/series.py", "2.0 ** (bits - 1) - 1) if signed else", "2.0 ** (bits - 1) - 1) if False else")],
        "fedml/cohort/dicom/test_dicom.py::test_a_signed_and_rescaled_monochrome1_is_turned_over_within_its_own_range",
    ),
    "MONOCHROME1 inverted over stored values although rescaled": (
        [
            (
                "fedml/cohort/dicom/series.py",
                "        low, high = low * slice_.slope + slice_.intercept, high * slice_.slope + slice_.intercept\n",
                "",
            )
        ],
        "fedml/cohort/dicom/test_dicom.py::test_a_signed_and_rescaled_monochrome1_is_turned_over_within_its_own_range",
    ),
    "slices in the order of their files": (
        [("fedml/cohort/dicom/grid.py", 'order = np.argsort(along, kind="stable")', "order = np.arange(len(along))")],
        "fedml/cohort/dicom/test_dicom.py::test_ct_is_in_hounsfield_units_and_slices_keep_their_own_rescale",
    ),
    "an affine in DICOM's axes": (
        [("fedml/cohort/dicom/grid.py", "RAS @ affine, (", "affine, (")],
        "fedml/cohort/dicom/test_dicom.py::test_any_regular_grid_is_found_whatever_its_direction",
    ),
    "overlay bits read as pixels": (
        [("fedml/cohort/dicom/files.py", "value &= (1 << stored) - 1", "value &= -1")],
        "fedml/cohort/dicom/test_dicom.py::test_bits_outside_of_those_stored_are_cleared_and_the_sign_is_kept",
    ),
    "the coarsest level of a slide whatever its scale": (
        [("fedml/cohort/slides/slide.py", "finest * level.downsample <= mpp * 1.02", "finest <= mpp * 1.02")],
        "fedml/cohort/slides/test_slide.py::test_a_tile_is_of_the_coarsest_level_that_is_fine_enough",
    ),
    "tiles with any tissue at all": (
        [("fedml/cohort/slides/slide.py", "np.nonzero(share >= min_tissue)", "np.nonzero(share > 0)")],
        "fedml/cohort/slides/test_slide.py::test_min_tissue_counts_the_share_of_a_tile",
    ),
    "a variant file flipped in part taken as flipped whole": (
        [("fedml/cohort/variants/harmonise.py", "complemented == clear >= ENOUGH", "10 * complemented >= 9 * clear >= ENOUGH")],
        "fedml/cohort/variants/test_panel.py::test_no_palindrome_of_a_file_that_is_flipped_in_part_is_kept_without_counts",
    ),
    "a missing call counted as no copy": (
        [("fedml/cohort/variants/frequency.py", "    np.copyto(out, 0.0, where=dosage < 0)\n", "")],
        "fedml/cohort/variants/test_frequency.py::test_centred_imputes_the_mean",
    ),
    "allele frequency among all persons, called or not": (
        [("fedml/cohort/variants/frequency.py", "2 * counts[:3].sum(0)\n", "2 * counts[:4].sum(0)\n")],
        "fedml/cohort/variants/test_frequency.py::test_frequency_and_call_rate",
    ),
    "men's alleles on X counted as two each": (
        [("fedml/cohort/variants/frequency.py", "(alt - counts[6], called - counts[5] - counts[6])", "(alt, called)")],
        "fedml/cohort/variants/test_ploidy.py::test_frequency_call_rate_and_equilibrium_by_hand",
    ),
    "a heterozygous man on X kept": (
        [("fedml/cohort/variants/ploidy.py", "row[mixed | none] = MISSING", "row[none | (mixed & none)] = MISSING")],
        "fedml/cohort/variants/test_ploidy.py::test_haploid_calls_count_as_homozygous_ones",
    ),
    "the first base after a pseudoautosomal region taken as part of it": (
        [("fedml/cohort/variants/ploidy.py", "position <= first or", "position <= first + 1 or")],
        "fedml/cohort/variants/test_ploidy.py::test_pseudoautosomal_regions_to_the_base",
    ),
    "few women told by subtraction of the men": (
        [("fedml/cohort/variants/ploidy.py", "carried_by_few(by_sex, min_count) | few", "carried_by_few(by_sex[:1], min_count) | few")],
        "fedml/cohort/variants/test_ploidy.py::test_no_count_tells_of_few_men_or_few_women",
    ),
    "only an allele of a single carrier is withheld": (
        [("fedml/cohort/variants/frequency.py", "(persons > 0) & (persons < min_count)", "(persons == 1)")],
        "fedml/cohort/variants/test_frequency.py::test_alleles_of_few_carriers_are_withheld",
    ),
    "an allele is lost where homozygotes are folded": (
        [("fedml/cohort/variants/frequency.py", "out[1] += 2 * moved", "out[1] += moved")],
        "fedml/cohort/variants/test_frequency.py::test_folded_counts_have_the_same_alleles_and_calls",
    ),
    "sites are left out of a variant by their cases": (
        [
            (
                "clients/work/people.py",
                "np.stack([everyone, *(level[rows] for level in levels)])",
                "np.stack([everyone, *(level[rows] for level in levels), cohort.labels[rows] == 1])",
            )
        ],
        "strategies/gwas/test_calibration.py::test_variants_without_an_effect_are_called_as_often_as_chance_does[persons0-0.2]",
    ),
    "the fit without an effect has one": (
        [("fedml/analytics/logistic.py", "free = size - state.held", "free = size")],
        "fedml/analytics/test_gwas_math.py::test_firths_test_is_the_ratio_of_penalised_likelihoods",
    ),
    "a view of a turned view is not turned back": (
        [("fedml/cohort/variants/packed.py", "flipped ^ self.flip[stored]", "flipped")],
        "fedml/cohort/variants/test_packed.py::test_views_of_views_are_what_one_makes_by_hand",
    ),
    "PLINK's A1 read as REF": (
        [("fedml/cohort/variants/plink.py", '"position", "alt", "ref")', '"position", "ref", "alt")')],
        "fedml/cohort/variants/test_plink.py::test_the_dosages_that_were_written_are_read",
    ),
}
