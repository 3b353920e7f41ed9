# Records of FASTA files with at least `shortest` letters, as they stand there.
BEGIN { RS = ">"; ORS = "" }
FNR > 1 {
    letters = $0
    sub(/^[^\n]*/, "", letters)
    gsub(/[[:space:]]/, "", letters)
    if (length(letters) >= shortest) print ">" $0
}
